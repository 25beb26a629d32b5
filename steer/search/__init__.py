"""Which layer, which strength, which method, and is it real: search, bake-off and report."""
