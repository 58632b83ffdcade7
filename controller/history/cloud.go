package history

// The buckets that Open knows besides directories. S3's driver makes the controller 12 MB
// larger.
import (
	_ "gocloud.dev/blob/s3blob"
)
