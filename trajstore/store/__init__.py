"""Bytes in a directory or a bucket: locating, locking, committing, and checked reads."""
