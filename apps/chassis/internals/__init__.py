"""Everything that uses private parts of a library, one module for each purpose."""
