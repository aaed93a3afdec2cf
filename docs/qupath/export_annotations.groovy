/**
 * Export what you have drawn on the images of the open project, for fseg.
 *
 * For each image NAME, FOLDER/NAME.seeds.geojson holds its points (fseg seed FOLDER NAME.seeds.geojson), and
 * FOLDER/NAME.tissue.geojson its areas (fseg segment --tissue, or the column tissue of a manifest). Objects that
 * fseg has made are left out.
 *
 * QuPath 0.5 or later; run by Groovy 4.0.26 with projects, objects and slides of QuPath 0.5.1 (its core, compiled from its
 * sources), and not in its window. Automate > Script editor > Run.
 */
import qupath.fx.dialogs.Dialogs
import qupath.fx.dialogs.FileChoosers

def folder = FileChoosers.promptForDirectory("Folder for the annotations", null)
if (folder == null)
    return
def project = getProject()
if (project == null) {
    Dialogs.showErrorMessage("fseg", "Open a project first")
    return
}

def nameResults = { String image ->
    def found = (image =~ /(?i)^(.+?)(\.ome\.tiff?|\.ome\.zarr|\.[^.]+)?$/)
    found.matches() ? found.group(1) : image
}

for (entry in project.getImageList()) {
    def drawn = entry.readHierarchy().getAnnotationObjects().findAll {
        !it.getMeasurements().containsKey("Region area µm^2")
    }
    def (points, others) = drawn.split { it.getROI().isPoint() }
    def areas = others.findAll { it.getROI().isArea() }
    def name = nameResults(entry.getImageName())
    if (points)
        exportObjectsToGeoJson(points, new File(folder, name + ".seeds.geojson").getPath(), "FEATURE_COLLECTION")
    if (areas)
        exportObjectsToGeoJson(areas, new File(folder, name + ".tissue.geojson").getPath(), "FEATURE_COLLECTION")
    println "${entry.getImageName()}: ${points.size()} seeds, ${areas.size()} areas"
}
