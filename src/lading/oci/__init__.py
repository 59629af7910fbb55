"""The vocabulary of the two OCI specifications: values and rules, pure and synchronous."""
