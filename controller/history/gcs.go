//go:build gcs

package history

import _ "gocloud.dev/blob/gcsblob" // 20 MB: see cloud.go
