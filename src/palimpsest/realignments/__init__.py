"""Realignments: what a thief does to bring a protected model back beside its relatives, one file a method."""
