//go:build gcs

package bucket

import _ "gocloud.dev/blob/gcsblob" // 20 MB: see bucket.go
