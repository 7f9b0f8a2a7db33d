"""Tables: files and data frames, what their cells mean, and what their columns are."""
