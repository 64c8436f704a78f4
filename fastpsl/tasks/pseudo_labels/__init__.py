"""UIC, DeepCluster and IIC: the network learns classes that it assigns itself."""
