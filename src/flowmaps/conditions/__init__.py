"""What a network is told: conditions made from the data and from what comes with them, one per file."""
