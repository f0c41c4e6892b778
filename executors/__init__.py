"""Executors: each renders jobs for one kind of place, submits them there and tells what became of them."""
