"""What is on the disk: data folder, run folders, a run's log and state, copies on Drive."""
