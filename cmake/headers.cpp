// Empty: precompiled headers are made for a source.
