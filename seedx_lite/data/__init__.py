"""Pictures and the three official data formats: reading, writing, checking, and the samples that ship."""
