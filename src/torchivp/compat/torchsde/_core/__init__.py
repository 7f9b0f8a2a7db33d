"""The modules of torchsde that programs import although they are private."""
