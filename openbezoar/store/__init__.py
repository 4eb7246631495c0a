"""What lies on disk of a run: steps' folders, their manifests and digests."""
