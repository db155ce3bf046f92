"""The HTTP gateway: thin routes over one gRPC call, and the admin REST."""
