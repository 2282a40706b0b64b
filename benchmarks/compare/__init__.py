"""What results files say: their rows as a table and a picture, and what changed between two of them."""
