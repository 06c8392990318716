"""Sound as the S2V model takes it."""
