"""Parts of epruner in the clothes of other libraries, a module each."""
