"""What several tests stand on: tiny bases, photos, runs to kill, a page on a free port, a Hub of our own."""
