"""What reads finished runs: the report of one, the table and the figures of many."""
