"""Everything on disk: the data folder, run folders, a run's log and state, copies on Drive."""
