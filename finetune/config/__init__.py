"""What a config may say: closed, documented nodes. Never imports torch, nor any other room."""
