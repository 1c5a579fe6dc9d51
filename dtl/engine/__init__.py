"""What keeps a study alive: the store, the workers, kept weights, progress. No page opens it."""
