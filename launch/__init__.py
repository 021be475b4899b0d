"""The whole stack on one machine: sidecar, Dynamo frontend and vLLM workers under supervisor.

Data flows one way: options -> plan -> run directory -> keeper, which starts supervisord and stays
until the stack has ended.
"""
