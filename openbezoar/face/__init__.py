"""The library as a program meets it: runs, models and training without a command line.

``import openbezoar`` takes its names from here when they are first used.
"""
