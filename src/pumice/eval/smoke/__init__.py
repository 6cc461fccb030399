"""The smoke page: a few photographs and scans that packages ship, asked by hand-written questions."""
