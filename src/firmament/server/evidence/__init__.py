"""Evidence about releases: bills of materials, vulnerabilities, who still runs them, compliance report."""
