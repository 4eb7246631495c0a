"""The verb ``evaluate``: tasks, held-out losses and preference accuracies."""
