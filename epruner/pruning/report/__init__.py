"""What was done? Tables, pictures and progress, of pure data."""
