"""TensorRT engines: targets, the builder in a process of its own, its log, the file's header."""
