"""The check before a job starts: what would fail an hour in, found in a second. No torch."""
