"""Intervals and tests for means, paired differences, shares and agreement. numpy only."""
