"""The toy world: scenes whose truth is known, their pictures, their words and their edits."""
