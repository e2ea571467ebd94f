"""Judging in front of a chat application: batches and limits, windows over streamed text, and what leaves when."""
