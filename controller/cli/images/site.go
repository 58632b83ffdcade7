package images

import "heliotrope/imagesync/site"

// What this package was the owner of before hosts had it too.
type (
	// Site is package site's.
	Site = site.Site
	// SiteOptions are package site's.
	SiteOptions = site.Options
)

// OpenSite is package site's Open.
var OpenSite = site.Open
