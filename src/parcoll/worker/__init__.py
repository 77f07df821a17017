"""What a worker is asked, does and answers."""
