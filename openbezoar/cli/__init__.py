"""The command line: arguments in, one call, words out; no torch at import."""
