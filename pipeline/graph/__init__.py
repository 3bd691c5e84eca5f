"""ONNX graphs: read, write, describe, check, rewrite. Alone imports onnx, onnx_ir and onnxscript."""
