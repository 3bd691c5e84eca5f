"""One file a stage; `pipeline.stages.catalogue` is the one explicit list of them."""
