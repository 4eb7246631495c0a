"""A recipe's steps as a graph: order, keys, what runs again, and the running of it."""
