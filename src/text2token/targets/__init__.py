"""Token target constructors and their store on disk."""
