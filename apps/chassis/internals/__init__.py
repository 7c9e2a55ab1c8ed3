"""Everything that reaches below a library's public API, one module for each purpose."""
