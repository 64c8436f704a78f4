"""UIC, DeepCluster and IIC: classes that the network itself gives the images."""
