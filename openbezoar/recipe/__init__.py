"""The recipe: every knob, documented where it is declared."""
