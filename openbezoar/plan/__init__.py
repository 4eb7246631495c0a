"""What a recipe will cost and what will go wrong with it, said before any work."""
