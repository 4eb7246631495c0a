"""What a run says about itself: the checkpoint table, the report, the cards. Reads finished steps only."""
