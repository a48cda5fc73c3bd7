"""The DevMentor platform's own services, one distribution."""
