"""What single modules compute: linear layers, BatchNorms, activations, pools, and the modules of our own."""
