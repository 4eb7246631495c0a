"""The verb ``report``: one page about the run."""
