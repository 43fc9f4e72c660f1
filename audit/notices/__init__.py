"""Notices: somebody outside learns of findings. Queued with each change, grouped, signed, sent, tried again."""
