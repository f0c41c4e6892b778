"""Bundled recipes: factories only, one small module a model family."""
